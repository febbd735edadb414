"""The server that browsers, players and programs speak to: FastAPI over any ``StreamHost``. Needs ``arl2[serve]``."""
