"""The charts of a report, in Vega-Lite by Altair; it needs the extra ``report``."""
