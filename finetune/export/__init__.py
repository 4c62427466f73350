"""Exports finished runs to ONNX and OpenVINO, proves the exports, and runs them.

- ``engine`` loads an export and answers logits. It needs the runtime only.
"""
