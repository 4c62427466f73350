"""Run directories -> tables, figures, an HTML page and a model card; never imports torch."""
