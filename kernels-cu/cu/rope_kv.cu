// rope_kv
