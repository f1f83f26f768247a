// kv_compact
