"""DNQ's search for the bits of each layer, and the rivals that it has to beat."""

from octavo.search.searching import METHODS, Method, SearchResult, search

__all__ = ["METHODS", "Method", "SearchResult", "search"]
