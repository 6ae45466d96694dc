#!/usr/bin/env bash
# Makes three hosts of this machine for the README's walk: network namespaces h1, h2, h3 on one switch,
# with the addresses 192.168.77.1 to .3. `deploy/walk.sh down` ends what runs in them and removes them.
set -euo pipefail

up() {
  ip netns add switch
  ip -n switch link add br0 type bridge
  ip -n switch link set br0 up
  for n in 1 2 3; do
    ip netns add "h$n"
    ip -n "h$n" link add eth0 type veth peer name "p$n" netns switch
    ip -n switch link set "p$n" master br0 up
    ip -n "h$n" addr add "192.168.77.$n/24" dev eth0
    ip -n "h$n" link set eth0 up
    ip -n "h$n" link set lo up
  done
  echo "made h1, h2 and h3; type: ip netns exec h1 ping -c1 192.168.77.2"
}

down() {
  for ns in h1 h2 h3 switch; do
    if [ -e "/run/netns/$ns" ]; then
      ip netns pids "$ns" | xargs -r kill
      ip netns delete "$ns"
    fi
  done
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  *) echo "usage: $0 up|down" >&2; exit 2 ;;
esac
