"""The comparison endpoint: windows that devices post, stored once, added up once, and what they tell."""
