// Command kubevirt-manifests prints, as one JSON List, the objects that virt-operator would create for virt-api,
// virt-controller and virt-handler. They come from KubeVirt's own generators. The rig creates them itself because
// virt-operator would also want to deploy the programs as pods.
//
// The Service of virt-api differs from the original: it has no selector, and its EndpointSlice names the address where
// the rig runs virt-api.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubevirt-manifests:", err)
		os.Exit(1)
	}
}

func run() error {
	namespace := flag.String("namespace", "kubevirt", "namespace that KubeVirt is installed in")
	address := flag.String("address", "", "address and port of virt-api, such as 201.0.0.1:8443")
	flag.Parse()
	virtAPI, err := netip.ParseAddrPort(*address)
	if err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	objects, err := manifests(*namespace, virtAPI)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(list{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"},
		Items:    objects,
	})
}

// list is a v1 List that keeps its items typed.
type list struct {
	metav1.TypeMeta `json:",inline"`
	Items           []runtime.Object `json:"items"`
}

// manifests are all objects, in an order in which they can be created.
func manifests(namespace string, virtAPI netip.AddrPort) ([]runtime.Object, error) {
	definitions, err := definitions()
	if err != nil {
		return nil, err
	}
	authority, err := newAuthority(namespace)
	if err != nil {
		return nil, err
	}
	secrets, err := authority.certificates(namespace)
	if err != nil {
		return nil, err
	}
	var all []runtime.Object
	all = append(all, definitions...)
	all = append(all, namespaceObject(namespace))
	all = append(all, roles(namespace)...)
	all = append(all, authority.objects()...)
	all = append(all, secrets...)
	all = append(all, kubeVirt(namespace))
	all = append(all, service(namespace, virtAPI)...)
	all = append(all, webhooks(namespace, authority.bundle)...)
	return all, nil
}
