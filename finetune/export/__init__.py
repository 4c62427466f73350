"""Exports finished runs to ONNX and OpenVINO, and runs the exports.

- ``exporting`` writes the folder of an export: ``formats`` converts the model, ``proof`` compares
  the result with the run on its test rows.
- ``engine`` loads such a folder and answers logits; it needs the runtime only.

May import every package but inference, which reads exports like runs.
"""

import os

# Without it NNCF, once imported, reports its use to its authors.
os.environ["NNCF_CI"] = "1"
