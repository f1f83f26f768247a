// logits
