// attention_decode
