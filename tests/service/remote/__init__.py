"""Tests of files from elsewhere, against servers of the test's own."""
