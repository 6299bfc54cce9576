"""What a machine is and has, and whether that is enough: facts are gathered, decisions about them are pure.

Needs the standard library alone, so that it helps where nothing is installed yet; what else it asks (torch, Redis,
Docker, Ray), it asks inside functions, and a package that is missing is a fact.
"""
