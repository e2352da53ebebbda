"""Figures and reports, made again at any time from run directories alone."""
