package nodetest

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// Translate writes what the sidecar writes, in short, into the pod.
func Translate(t testing.TB, p *Pod, address netip.Addr) {
	t.Helper()
	rules := strings.NewReplacer("FIP", address.String(), "GUEST", GuestFixed).Replace(`
	table ip nat {
	  chain leg {
	    ct original ip daddr FIP ct original ip saddr != { GUEST, 10.0.2.1 } meta mark set 0x77 return
	    ct reply ip daddr FIP ct original ip daddr != FIP meta mark set 0x77 return
	    iifname "k6t-eth0" ct state new ip saddr GUEST ip daddr != { 100.0.0.0/16, 201.0.0.0/24, 10.0.2.0/24 } ip daddr != FIP meta mark set 0x77
	  }
	  chain marking { type filter hook prerouting priority mangle; iifname "k6t-eth0" jump leg; }
	  chain marking_out { type route hook output priority mangle; jump leg; }
	  chain pre { type nat hook prerouting priority -110; iifname { "fip0", "k6t-eth0" } ip daddr FIP dnat to GUEST; }
	  chain post { type nat hook postrouting priority 90;
	    oifname "k6t-eth0" ct original ip daddr FIP ip saddr GUEST snat to FIP
	    oifname "fip0" ip saddr GUEST snat to FIP
	  }
	  chain kubevirt { type nat hook postrouting priority 100; ip saddr GUEST oifname "eth0" masquerade; }
	}`)
	p.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}
