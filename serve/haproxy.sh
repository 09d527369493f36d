#!/bin/sh
# HAProxy as Ray Serve configures it, but its statistics and metrics are for this machine alone: they listen everywhere.
# $RAYGUARD_HAPROXY is the program. Serve's arguments are `-db -f FILE ...`.
[ "$2" = "-f" ] && sed -i \
  -e '/^frontend prometheus/,/mode http/ s/bind :/bind 127.0.0.1:/' \
  -e '/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/' "$3"
exec "$RAYGUARD_HAPROXY" "$@"
