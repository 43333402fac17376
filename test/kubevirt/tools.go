//go:build tools

// Package kubevirt names the commands and packages of KubeVirt that the rig builds, so that go.mod keeps their modules.
package kubevirt

import (
	_ "github.com/vishvananda/netlink"
	_ "kubevirt.io/client-go/kubecli"
	_ "kubevirt.io/kubevirt/cmd/virt-api"
	_ "kubevirt.io/kubevirt/cmd/virt-chroot"
	_ "kubevirt.io/kubevirt/cmd/virt-controller"
	_ "kubevirt.io/kubevirt/pkg/network/dhcp/server"
	_ "kubevirt.io/kubevirt/pkg/network/setup"
	_ "kubevirt.io/kubevirt/pkg/network/setup/netpod/masquerade"
	_ "kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	_ "kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/rbac"
)
