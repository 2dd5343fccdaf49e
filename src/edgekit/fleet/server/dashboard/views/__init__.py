"""What each page shows, ready to print: frozen values made from rows, without a database, a clock or a template."""
