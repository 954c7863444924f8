"""hylo: does an adapter component help, by how much, at what parameter cost, and is the effect real?"""

__version__ = "0.1.0"
