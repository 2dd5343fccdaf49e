"""How people see figures: numbers in words, charts as SVG, and one style sheet for every page."""
