"""Serve a finished run over HTTP: predictions in shared batches, generated text, metrics.

``app`` puts the routes together, ``service`` is the model behind them, ``batching`` what shares a
forward pass, ``guards`` what every request has to pass, ``server`` the process. May import every
package but training, forecast, checks and report.
"""
