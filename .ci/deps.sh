#!/usr/bin/env bash
# Installs the Debian packages that Bulkhead and its tests need and that are missing.
set -euo pipefail

declare -A package=(
  [iptables]=iptables [ipset]=ipset [ip]=iproute2 [tc]=iproute2 [conntrack]=conntrack [nft]=nftables [iperf3]=iperf3
  [ping]=iputils-ping [tcpdump]=tcpdump [systemd-analyze]=systemd [wg]=wireguard-tools [gcc]=gcc [git]=git [curl]=curl
  [clang-14]=clang-14 [llvm-strip-14]=llvm-14 [bpftool]=bpftool [podman]=podman [runc]=runc [dbus-daemon]=dbus-daemon
)
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for command in "${!package[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package[$command]}")
done
if ! command -v go >/dev/null; then
  echo "go is missing: install Go 1.26 or newer, see https://go.dev/doc/install" >&2
  exit 1
fi
[ -e /usr/include/bpf/bpf_helpers.h ] || missing+=(libbpf-dev) # programs are built anew, to compare
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "these packages are missing: ${missing[*]} (fix: run as root, or apt-get install them)" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" libc6-dev >/dev/null
