"""Where a run meets its user's other tools: Python, ONNX, pictures, tracking, tuning."""
