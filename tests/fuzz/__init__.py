"""Inputs that nobody wrote: mutations of good ones, and whatever hypothesis comes up with."""
