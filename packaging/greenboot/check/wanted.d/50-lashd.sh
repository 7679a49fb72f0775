#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# For greenboot: is every image that the booted deployment binds complete in the bound image store, under its name?
# Installed in /usr/lib/greenboot/check/wanted.d; runs by itself as well: status 0 yes, 1 no, a sentence for each image.
#
# It is *wanted*, so that its failure is shown (message of the day, journal of greenboot-healthcheck.service) and the boot
# counts as good all the same: a reboot brings no image back, lashd fetches it again while the system runs. Who would
# rather go back to the previous system links this file into /etc/greenboot/check/required.d: then, after some reboots,
# greenboot rolls back. A reboot that was held back is no failure in either case: it comes up in the old system, whose
# images are there.

# lashd was removed from this host: nothing to judge.
[ -x /usr/lib/lashd/activate ] || exit 0
exec /usr/lib/lashd/activate --check
