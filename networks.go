package floatip

import (
	"fmt"
	"net/netip"
	"strings"
)

// ParseNetworks reads a list of networks separated by commas, as the ConfigMap gives it to webhook and agent:
// "100.0.0.0/16, 10.96.0.0/12". Both read it here, so that neither accepts what the other refuses. An empty text is an
// empty list. The error quotes the part that is wrong and, for one with bits of a host, says the network that it lies in.
func ParseNetworks(text string) ([]netip.Prefix, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var networks []netip.Prefix
	for _, part := range strings.Split(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is not a network: %w", part, err)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has bits of a host, write %s", p, p.Masked())
		}
		networks = append(networks, p)
	}
	return networks, nil
}
