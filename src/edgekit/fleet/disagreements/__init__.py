"""Inputs on which two versions differ: taken where they were asked for, sealed, bounded, and deleted on request.

They are what the fleet has of people's data, so nothing is taken unless the server's settings and the rollout both ask
for some and the device does not mind, and nothing is read without a row in the audit log.
"""
