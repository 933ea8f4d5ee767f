"""Measuring: closed loop, quality of imagined video, intervals, and the page that shows them."""
