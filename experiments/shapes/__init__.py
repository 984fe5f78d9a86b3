"""Which shape of a draft pays: a chain, or a tree?"""
