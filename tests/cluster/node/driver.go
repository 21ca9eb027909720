package main

import (
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"cluster/node/volumes"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/mount-utils"
)

// driver is the node's half of the CSI driver: it attaches a volume's image to a loop device and mounts it.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	volumes.Images
	node    string
	mounter mount.Interface
}

func (*driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: volumes.DriverName, VendorVersion: "1"}, nil
}

func (*driver) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_VolumeExpansion_{
			VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE},
		},
	}}}, nil
}

func (*driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

func (*driver) NodeGetCapabilities(
	context.Context, *csi.NodeGetCapabilitiesRequest,
) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, capability := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME, csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}

// device is the loop device that an image is attached to, or "" if it is to none.
func device(path string) (string, error) {
	output, err := volumes.Run("losetup", "--noheadings", "--output", "NAME", "--associated", path)
	first, _, _ := strings.Cut(output, "\n")
	return strings.TrimSpace(first), err
}

func (d *driver) NodePublishVolume(
	_ context.Context, request *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	path, err := d.Path(request.VolumeId)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	mounted, err := d.mounter.IsMountPoint(request.TargetPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if mounted {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	if err := os.MkdirAll(request.TargetPath, 0o755); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	loop, err := device(path)
	if err == nil && loop == "" {
		loop, err = volumes.Run("losetup", "--find", "--show", path)
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	var options []string
	if request.Readonly {
		options = append(options, "ro")
	}
	if err := d.mounter.Mount(loop, request.TargetPath, "xfs", options); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	// Detaching a device in use lets go of it with its last mount, however that ends: unmounted, or gone with the
	// whole node. A mounted device has done nothing wrong if this fails.
	if _, err := volumes.Run("losetup", "--detach", loop); err != nil {
		klog.ErrorS(err, "The loop device stays attached", "device", loop)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *driver) NodeUnpublishVolume(
	_ context.Context, request *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := mount.CleanupMountPoint(request.TargetPath, d.mounter, true); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(
	_ context.Context, request *csi.NodeExpandVolumeRequest,
) (*csi.NodeExpandVolumeResponse, error) {
	path, err := d.Path(request.VolumeId)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	loop, _, err := mount.GetDeviceNameFromMount(d.mounter, request.VolumePath)
	if err == nil && loop == "" {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is not mounted", request.VolumeId)
	}
	if err == nil {
		_, err = volumes.Run("losetup", "--set-capacity", loop)
	}
	if err == nil {
		_, err = volumes.Run("xfs_growfs", "-d", request.VolumePath)
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: info.Size()}, nil
}

func (*driver) NodeGetVolumeStats(
	_ context.Context, request *csi.NodeGetVolumeStatsRequest,
) (*csi.NodeGetVolumeStatsResponse, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(request.VolumePath, &fs); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	bytes := func(blocks uint64) int64 { return int64(blocks) * fs.Bsize }
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit: csi.VolumeUsage_BYTES, Total: bytes(fs.Blocks), Available: bytes(fs.Bavail),
			Used: bytes(fs.Blocks - fs.Bfree),
		},
		{
			Unit: csi.VolumeUsage_INODES, Total: int64(fs.Files), Available: int64(fs.Ffree),
			Used: int64(fs.Files - fs.Ffree),
		},
	}}, nil
}

// registrar tells the kubelet, which watches a folder for such sockets, where the driver listens.
type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: volumes.DriverName, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(
	_ context.Context, s *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	klog.InfoS("Registered at the kubelet", "ok", s.PluginRegistered, "error", s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

func listen(path string) net.Listener {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		klog.Fatal(err)
	}
	// A killed driver leaves its socket, which can't be bound again.
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		klog.Fatal(err)
	}
	return listener
}

// volumeDriver serves one node's kubelet.
func volumeDriver() {
	root := flag.String("root", "", "the folder of all nodes' volumes")
	node := flag.String("node", "", "the name of this node")
	endpoint := flag.String("endpoint", "", "the socket to serve the driver at")
	plugins := flag.String("plugins-registry", "", "the folder that the kubelet watches for drivers")
	flag.Parse()
	d := &driver{Images: volumes.Images{Root: *root}, node: *node, mounter: mount.New("")}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, d)
	csi.RegisterNodeServer(server, d)
	go func() { klog.Fatal(server.Serve(listen(*endpoint))) }()
	registry := grpc.NewServer()
	registration.RegisterRegistrationServer(registry, &registrar{endpoint: *endpoint})
	klog.Fatal(registry.Serve(listen(filepath.Join(*plugins, volumes.DriverName+"-reg.sock"))))
}
