"""Tests of `normbench data prepare`: official downloads become data folders."""
