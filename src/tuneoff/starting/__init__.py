"""The first hour: what this machine can do, and a study file that fits some data and the machine."""
