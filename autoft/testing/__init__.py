"""Tools for plugin authors and for the tests: toy plugins and the conformance kit."""
