c(){ bash one.sh "$@"; }
J="128,128,128,2,2,true,true,false,TileUse::kAny,false"; N="128,128,128,2,1,true,true,false,TileUse::kAny,false"
F="-DEP2=0 -DD32=0"
c z128j q5 $J $F -DNEXT=0; c zn128j q5 $J $F; c zd128j q5 $J -DEP2=0 -DNEXT=0
c z128 q5 $N $F -DNEXT=0; c zn128 q5 $N $F;  c zn128e q5 $N -DD32=0
T64="64,64,128,3,1,true,false,false,TileUse::kAny,false"
c z64 q5 $T64 $F -DNEXT=0; c zn64 q5 $T64 $F; c zu64 q5 "64,64,128,3,1,false,false,false,TileUse::kAny,false" $F
c zp64 q5 $T64 $F -DNEXT=0 -DPOLY=8
c z64t q5 "64,64,64,2,1,false,false,false,TileUse::kTwoCtas,false" $F; c z64te q5 "64,64,64,2,1,false,false,false,TileUse::kTwoCtas,false" -DD32=0
c z256 q5 "256,256,80,2,1,false,false,false,TileUse::kAny,false" $F -DNEXT=0; c zn256 q5 "256,256,80,2,1,false,false,false,TileUse::kAny,false" $F;
c zo256 q5 "256,256,80,2,1,false,true,false,TileUse::kAny,false" $F -DNEXT=0
c z176 q5 "128,128,176,2,1,true,true,false,TileUse::kAny,false" $F -DNEXT=0; c z176n q5 "128,128,176,2,1,true,false,false,TileUse::kAny,false" $F -DNEXT=0;
c zu128j q5 "128,128,128,2,2,false,true,false,TileUse::kAny,false" $F -DNEXT=0; c zo128j q5 "128,128,128,2,2,true,false,false,TileUse::kAny,false" $F -DNEXT=0;
