package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam"
	"floatip.io/floatip/ipam/v1alpha1"
	"floatip.io/floatip/webhook"
)

// sighter reads from objects who has which address: from FloatingIP objects, which only floatip may write, and from VMs
// for the addresses that have no such object.
type sighter struct {
	// known returns what the ledger has under a claim.
	known func(floatip.Claim) []ipam.Allocation
	// skipped is told of a FloatingIP that cannot be read.
	skipped func(name string)
}

// sightings are what a cluster shows: by objects that only floatip writes or by claims that the ledger knows, and what VMs
// show besides. A VM's annotations can be written by its owner while the webhook is away, by way of KubeVirt's
// accounts, which the admission policies let through: they are wishes (Starter.adopt).
type sightings struct {
	proven []ipam.Sighting // not nil, which stands for an unknown cluster
	wishes []wish
}

// wish is what only a VM's annotations say.
type wish struct {
	ipam.Sighting
	optedOut bool
}

// all returns both kinds, what is proven first.
func (s sightings) all() []ipam.Sighting {
	seen := slices.Clip(s.proven)
	for _, w := range s.wishes {
		seen = append(seen, w.Sighting)
	}
	return seen
}

// read lists both kinds of objects from reader.
func (s sighter) read(ctx context.Context, reader client.Reader) (sightings, error) {
	var ips v1alpha1.FloatingIPList
	if err := reader.List(ctx, &ips); err != nil {
		return sightings{}, fmt.Errorf("list FloatingIPs: %w", err)
	}
	vms := metadataList(vmKind)
	if err := reader.List(ctx, vms); err != nil {
		return sightings{}, fmt.Errorf("list VMs: %w", err)
	}
	return s.sightings(ips.Items, vms.Items), nil
}

func (s sighter) sightings(ips []v1alpha1.FloatingIP, vms []metav1.PartialObjectMetadata) sightings {
	claims := map[string]floatip.Claim{}
	for _, vm := range vms {
		if claim, err := floatip.ParseClaim(vm.Annotations[floatip.AnnotationClaim]); err == nil {
			claims[string(vm.UID)] = claim
		}
	}
	found := sightings{proven: []ipam.Sighting{}}
	shown := map[netip.Addr]bool{}
	for _, ip := range ips {
		address, err := ipam.ParseAddress(ip.Spec.Address)
		if err != nil || ip.Spec.VM.UID == "" {
			s.skipped(ip.Name)
			continue
		}
		shown[address] = true
		uid := string(ip.Spec.VM.UID)
		found.proven = append(found.proven, ipam.Sighting{
			Address: address, Pool: ip.Spec.Pool, Claim: claims[uid], Source: "FloatingIP",
			Owner: floatip.Owner{Namespace: ip.Spec.VM.Namespace, Name: ip.Spec.VM.Name, UID: uid},
		})
	}
	for _, vm := range vms {
		owner := floatip.Owner{Namespace: vm.Namespace, Name: vm.Name, UID: string(vm.UID)}
		for _, seen := range s.ofVM(owner, vm.Annotations, shown) {
			if s.proves(seen) {
				found.proven = append(found.proven, seen)
			} else {
				found.wishes = append(found.wishes, wish{seen, vm.Annotations[floatip.LabelEnabled] == "false"})
			}
		}
	}
	return found
}

// proves reports whether the ledger itself has the address for that VM under its claim, or a promise of it that was kept.
func (s sighter) proves(seen ipam.Sighting) bool {
	return slices.ContainsFunc(s.known(seen.Claim), func(line ipam.Allocation) bool {
		return line.Address == seen.Address && (line.Owner.UID == seen.Owner.UID || line.Awaits(seen.Owner))
	})
}

// ofVM reads the annotations of a VM. Those without a claim, and those whose claim the ledger knows with somebody else,
// are no proof: they came with a copy.
func (s sighter) ofVM(owner floatip.Owner, annotations map[string]string, shown map[netip.Addr]bool) []ipam.Sighting {
	claim, err := floatip.ParseClaim(annotations[floatip.AnnotationClaim])
	if err != nil || owner.UID == "" {
		return nil
	}
	for _, line := range s.known(claim) {
		if line.Owner.UID != owner.UID && !line.Awaits(owner) {
			return nil
		}
	}
	addresses, err := webhook.ParseAddresses(annotations[floatip.AnnotationAddress])
	if err != nil {
		return nil
	}
	var seen []ipam.Sighting
	for _, address := range addresses {
		if !shown[address] {
			seen = append(seen, ipam.Sighting{Address: address, Owner: owner, Claim: claim, Source: "VirtualMachine"})
		}
	}
	return seen
}
