"""Accuracy: the phone's scores and text against QDQ's and the float model's."""
