"""The conformance kit, which holds a cell against the contract: see kit.py."""
