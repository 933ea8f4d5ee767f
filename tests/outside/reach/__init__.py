"""A stranger's package: a task, a simulator with an expert, and a
model, which Foreact has never heard of.
"""
