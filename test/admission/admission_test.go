package admission

import "testing"

// TestAdmission runs what can run side by side, each test with a namespace and a pool of its own, and then one after the
// other what disturbs all: etcd or the webhook away. In the end the ledger must hold together and agree with the cluster.
func TestAdmission(t *testing.T) {
	w := start(t)
	t.Run("DryRun", func(t *testing.T) { dryRun(t, w) }) // first: while others run, the ledger's bytes change
	t.Run("together", func(t *testing.T) {
		t.Run("NamespaceDeleted", func(t *testing.T) { // the longest begins
			t.Parallel()
			namespaceDeleted(t, w)
		})
		for name, test := range map[string]func(*testing.T, *world){
			"GenerateName":          generateName,
			"GenerateNameCollision": generateNameCollision,
			"NameReuse":             nameReuse,
			"Reinvocation":          reinvocation,
			"RejectedLater":         rejectedLater,
			"ForgedLater":           forgedLater,
			"StaticRace":            staticRace,
			"ApplyAgain":            applyAgain,
			"Edit":                  edit,
			"UpdateByPrograms":      updateByPrograms,
			"Clone":                 clone,
			"Restore":               restore,
			"VirtualMachinePool":    vmPool,
			"FromBackup":            fromBackup,
			"LabelToggled":          labelToggled,
			"LabelWhileRunning":     labelWhileRunning,
			"AuditLog":              auditLog,
			"Events":                events,
			"PoolShrunk":            poolShrunk,
			"PoolSplit":             poolSplit,
			"Columns":               columns,
			"NodesKeepTheirs":       nodesKeepTheirs,
			"ForcedDeletion":        forcedDeletion,
			"NotAsked":              notAsked,
			"Bodies":                bodies,
			"Bindings":              bindings,
			"Launchers":             launchers,
			"Hotplug":               hotplug,
			"PodPolicies":           podPolicies,
			"KeyPolicies":           keyPolicies,
			"Agents":                agents,
			"Hints":                 hints,
			"TemplateOptsOut":       templateOptsOut,
			"ClientCertificates":    clientCertificates,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, w)
			})
		}
	})
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"EtcdAnswerWithheld", etcdAnswerWithheld},
		{"PolicyCameLater", policyCameLater},
		{"WebhookDown", webhookDown},
		{"OptOutPolicy", optOutPolicy},
		{"WebhookSlow", webhookSlow},
		{"WebhookRestarting", webhookRestarting},
		{"WebhookStarting", webhookStarting},
		{"CertManager", certManager}, // last: floatip's own certificates are given up
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, w) })
	}
	report, err := w.ledger.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("ledger check: %s: %s", p.Address, p.Text)
	}
}
