"""Stages of a fit."""
