// Command barewg is wireguard-go and nothing else: the baseline that Bulkhead's data plane is held against. It makes
// a TUN interface, takes its configuration in the text of WireGuard's own UAPI, and runs until it is told to end. It
// has wireguard-go's own bind, no firewall and no memory limit.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

func main() {
	name := flag.String("interface", "bare0", "name of the TUN interface")
	mtu := flag.Int("mtu", 1420, "its MTU in bytes")
	path := flag.String("configuration", "", "file with what `wg` would set, as UAPI text")
	flag.Parse()
	if err := run(*name, *mtu, *path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string, mtu int, path string) error {
	configuration, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	native, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return fmt.Errorf("make interface %s: %w", name, err)
	}
	d := device.NewDevice(native, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer d.Close()
	if err := d.IpcSet(string(configuration)); err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	if err := d.Up(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	select {
	case <-end:
		return nil
	case <-d.Wait():
		return errors.New("the device has closed by itself")
	}
}
