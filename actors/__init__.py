"""The adversary: vLLM env runners, the GRPO algorithm in RLlib, rewards, gate, scorer and archive."""
