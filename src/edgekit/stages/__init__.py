"""Stages that change the network between loading and lowering."""
