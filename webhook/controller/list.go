package controller

import (
	"encoding/json"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
)

// maxList bounds what ReadList takes, in bytes: some ten thousand VMs with everything that kubectl writes of them.
const maxList = 512 << 20

// ReadList reads a list of VirtualMachines, FloatingIPs and FloatingIPPools, as kubectl writes it in JSON, for a check
// of ledger. A list without pools says nothing about them; one without VMs is refused, since a check against it would
// report every address.
func ReadList(in io.Reader, ledger *ipam.Ledger) (ipam.Against, error) {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.NewDecoder(io.LimitReader(in, maxList)).Decode(&list); err != nil {
		return ipam.Against{}, fmt.Errorf("not a list in JSON, as kubectl get -o json writes it: %w", err)
	}
	var vms []metav1.PartialObjectMetadata
	var ips []v1alpha1.FloatingIP
	var pools []v1alpha1.FloatingIPPool
	for i, raw := range list.Items {
		var kind metav1.TypeMeta
		if err := json.Unmarshal(raw, &kind); err != nil {
			return ipam.Against{}, fmt.Errorf("items[%d]: %w", i, err)
		}
		var err error
		switch kind.Kind {
		case vmKind.Kind:
			vms, err = appendItem(vms, raw)
		case "FloatingIP":
			ips, err = appendItem(ips, raw)
		case "FloatingIPPool":
			pools, err = appendItem(pools, raw)
		}
		if err != nil {
			return ipam.Against{}, fmt.Errorf("items[%d], a %s: %w", i, kind.Kind, err)
		}
	}
	if len(vms) == 0 {
		return ipam.Against{}, fmt.Errorf("no VirtualMachine among %d items: was it written by "+
			"kubectl get vm,floatingips,floatingippools -A -o json?", len(list.Items))
	}
	against := ipam.Against{Seen: sighter{ledger.ByClaim, func(string) {}}.sightings(ips, vms).all()}
	if len(pools) > 0 {
		against.Pools = valid(poolObjects(pools, nil))
	}
	return against, nil
}

func appendItem[T any](all []T, raw []byte) ([]T, error) {
	var item T
	err := json.Unmarshal(raw, &item)
	return append(all, item), err
}
