#!/bin/sh
# A command that on a phone changes something a virtual one does not have (its screen, its radio): accepted, without effect.
exit 0
