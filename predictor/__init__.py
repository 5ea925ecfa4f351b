"""Forecasts of answer lengths and the actor that serves them."""
