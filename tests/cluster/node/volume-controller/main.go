// Volume-controller provisions, grows and deletes the volumes of all nodes. It is a program of its own since the
// resizer's and the kubelet's feature gates refuse to be in one.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"cluster/node/volumes"

	resize "github.com/kubernetes-csi/external-resizer/pkg/controller"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"
)

// provisioner makes and deletes the images behind PersistentVolumes.
type provisioner struct{ volumes.Images }

func (p provisioner) Provision(
	_ context.Context, options controller.ProvisionOptions,
) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	if options.SelectedNode == nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("the storage class must bind WaitForFirstConsumer")
	}
	node := options.SelectedNode.Name
	id := volumes.Handle(node, options.PVName)
	path, err := p.Path(id)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	request := options.PVC.Spec.Resources.Requests[v1.ResourceStorage]
	size := volumes.Capacity(request.Value())
	if err := volumes.Grow(path, size); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if _, err := volumes.Run("mkfs.xfs", "-q", "-f", path); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			MountOptions:                  options.StorageClass.MountOptions,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: *resource.NewQuantity(size, resource.BinarySI)},
			PersistentVolumeSource: v1.PersistentVolumeSource{
				CSI: &v1.CSIPersistentVolumeSource{Driver: volumes.DriverName, VolumeHandle: id, FSType: "xfs"},
			},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{{
					Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node},
				}}}},
			}},
		},
	}, controller.ProvisioningFinished, nil
}

func (p provisioner) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	path, err := p.Path(volume.Spec.CSI.VolumeHandle)
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// expander grows the image; the driver on the volume's node then grows the file system in it.
type expander struct{ volumes.Images }

func (expander) Name() string                              { return volumes.DriverName }
func (expander) DriverSupportsControlPlaneExpansion() bool { return true }

func (expander) CanSupport(volume *v1.PersistentVolume, _ *v1.PersistentVolumeClaim) bool {
	return volume.Spec.CSI != nil && volume.Spec.CSI.Driver == volumes.DriverName
}

func (e expander) Resize(volume *v1.PersistentVolume, request resource.Quantity) (resource.Quantity, bool, error) {
	path, err := e.Path(volume.Spec.CSI.VolumeHandle)
	if err != nil {
		return request, false, err
	}
	size := volumes.Capacity(request.Value())
	return *resource.NewQuantity(size, resource.BinarySI), true, volumes.Grow(path, size)
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	root := flag.String("root", "", "the folder of all nodes' volumes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	config.QPS, config.Burst = 50, 100
	client := kubernetes.NewForConfigOrDie(config)
	all := volumes.Images{Root: *root}

	factory := informers.NewSharedInformerFactory(client, 0)
	nodes := factory.Core().V1().Nodes()
	retries := workqueue.NewTypedItemExponentialFailureRateLimiter[string](time.Second, time.Minute)
	resizer := resize.NewResizeController(
		volumes.DriverName, expander{all}, client, 10*time.Minute, factory, retries, true, time.Minute)
	lister := nodes.Lister()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	go resizer.Run(2, ctx)
	controller.NewProvisionController(
		klog.FromContext(ctx), client, volumes.DriverName, provisioner{all},
		controller.LeaderElection(false), controller.NodesLister(lister),
	).Run(ctx)
}
