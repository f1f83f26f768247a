// attention_prefill
