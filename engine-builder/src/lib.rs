//! Takt's builder: ONNX and Hugging Face checkpoints → one internal decoder description → a quantized engine directory.
