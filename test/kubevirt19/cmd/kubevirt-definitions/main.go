//go:build ignore

// Command kubevirt-definitions prints, as one JSON List, KubeVirt v1.9's definitions of VirtualMachines, their instances and
// migrations: the rig's own are those of v1.8, with which an API server forgets port ranges.
//
// It is built together with the two files of KubeVirt's package components that make them (test/rig.mk), not with the package:
// that needs modules which nobody can fetch (kubevirt.io/virt-template-api).
package main

import (
	"encoding/json"
	"fmt"
	"os"

	extv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubevirt-definitions:", err)
		os.Exit(1)
	}
}

func run() error {
	list := extv1.CustomResourceDefinitionList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
	for _, generate := range []func() (*extv1.CustomResourceDefinition, error){
		NewVirtualMachineCrd, NewVirtualMachineInstanceCrd, NewVirtualMachineInstanceMigrationCrd,
	} {
		definition, err := generate()
		if err != nil {
			return fmt.Errorf("generate a custom resource definition: %w", err)
		}
		list.Items = append(list.Items, *definition)
	}
	return json.NewEncoder(os.Stdout).Encode(list)
}
