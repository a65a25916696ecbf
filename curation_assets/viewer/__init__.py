"""Traces as people read them: one page that holds everything it shows (`curate report`)."""
