#!/bin/sh
# HAProxy as Ray Serve configures it, but
# - its statistics and metrics are for this machine alone: they listen everywhere;
# - it refuses texts that come while every replica has 256 requests in hand: a refusal of a replica costs the time of an
#   answer but for its model, and under overload there are more of those than of answers. One waits for a place, as long as
#   a request may take; bodies that do not come take none.
# - its log has no query, in which clients of Perspective send their key;
# - headers that Ray takes for text and are none go no further: they would be answered with 500, by whatever route.
# $RAYGUARD_HAPROXY is the program. Serve's arguments are `-db -f FILE ...`.
why='More requests than can be answered in time; try again later.'
openai='{"error":{"message":"'$why'","type":"server_error","param":null,"code":"overloaded"}}'
google='{"error":{"code":429,"message":"'$why'","status":"RESOURCE_EXHAUSTED"}}'
refuse() {
  printf "    http-request return status 429 content-type application/json hdr Retry-After 1 string '%s'" "$1"
  printf ' if METH_POST { queue gt 0 } %s' "$2"
}
drop() { printf '    http-request del-header %s if { req.hdr(%s) -m reg [^!-~] }' "$1" "$1"; }
log='log-format "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq %HM %HPO"'
[ "$2" = "-f" ] && sed -i \
  -e "s|option httplog|$log|" \
  -e "/^frontend http_frontend/ a\\$(drop x-request-id)\\n$(drop x-session-id)" \
  -e '/^frontend prometheus/,/mode http/ s/bind :/bind 127.0.0.1:/' \
  -e '/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/' \
  -e "/^    # Servers in this backend/ a\\    option http-buffer-request\\n    timeout http-request 10s\\n    timeout queue 35s" \
  -e "/^    # Servers in this backend/ a\\$(refuse "$google" '{ path /v1alpha1/comments:analyze }')\\n$(refuse "$openai")" \
  -e '/^    server .* check/ s/$/ maxconn 256/' "$3"
exec "$RAYGUARD_HAPROXY" "$@"
