"""BAIQA: scalable triggers, their search, and poisoned training sets."""
